//! QEMU's command line as typed pieces, so that no value can turn into an
//! option of its own.
//!
//! QEMU splits an option list at single commas and reads a doubled comma as one
//! (QEMU `util/qemu-option.c`). [`OptionList::set`] is the only way a value
//! enters a list, and it doubles commas.

/// One option list, such as `virtio-net-pci,netdev=n0,romfile=`.
#[derive(Debug, Clone)]
pub(crate) struct OptionList(String);

impl OptionList {
    /// A list whose first, implied option is `head`.
    pub(crate) fn new(head: &'static str) -> Self {
        Self(head.to_owned())
    }

    /// A list without an implied option.
    pub(crate) fn keyed(key: &'static str, value: impl AsRef<str>) -> Self {
        Self(String::new()).set(key, value)
    }

    /// Appends `key=value`.
    pub(crate) fn set(mut self, key: &'static str, value: impl AsRef<str>) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&value.as_ref().replace(',', ",,"));
        self
    }
}

/// QEMU's arguments, the program itself not included.
#[derive(Debug, Default)]
pub(crate) struct Argv(Vec<String>);

impl Argv {
    /// An option without a value.
    pub(crate) fn flag(&mut self, option: &'static str) {
        self.0.push(option.to_owned());
    }

    /// An option whose value QEMU takes verbatim, commas included.
    pub(crate) fn verbatim(&mut self, option: &'static str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }

    /// An option whose value is an option list.
    pub(crate) fn list(&mut self, option: &'static str, list: OptionList) {
        self.verbatim(option, list.0);
    }

    /// The finished arguments.
    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_values_do_not_end_an_option() {
        let list = OptionList::keyed("file", "a,readonly=off,,b").set("format", "raw");
        assert_eq!(list.0, "file=a,,readonly=off,,,,b,format=raw");
    }
}
