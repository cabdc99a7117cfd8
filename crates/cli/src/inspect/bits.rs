//! Fields of bits, in words.

use serde::Serialize;

use super::table::Table;

/// A field of bits.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Bits {
    /// The field, `0x` and hexadecimal.
    value: String,
    /// The set bits with a meaning, lowest first.
    set: Vec<Bit>,
    /// The set bits without one, `0x` and hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

/// A bit that is set.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Bit {
    name: &'static str,
    meaning: &'static str,
}

impl Bits {
    /// `known` are mask, name and meaning of every bit with one.
    pub(super) fn new(
        value: u64,
        unknown: u64,
        known: impl IntoIterator<Item = (u64, &'static str, &'static str)>,
    ) -> Self {
        Self {
            value: format!("{value:#x}"),
            set: known
                .into_iter()
                .filter(|(mask, ..)| value & mask == *mask)
                .map(|(_, name, meaning)| Bit { name, meaning })
                .collect(),
            unknown: (unknown != 0).then(|| format!("{unknown:#x}")),
        }
    }

    pub(super) fn to_text(&self, name: &str, table: &mut Table) {
        table.row(name, &self.value);
        for bit in &self.set {
            table.row("", format!("{}: {}", bit.name, bit.meaning));
        }
        if let Some(unknown) = &self.unknown {
            table.row(
                "",
                format!("{unknown}: no meaning is known for these bits."),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bits_have_names_and_others_are_shown() {
        let bits = Bits::new(
            0x45,
            0x40,
            [(1, "One", "1."), (2, "Two", "2."), (4, "Four", "4.")],
        );
        let mut table = Table::default();
        bits.to_text("field", &mut table);
        assert_eq!(
            table.to_string(),
            "  field  0x45\n         One: 1.\n         Four: 4.\n         \
             0x40: no meaning is known for these bits.\n"
        );
    }
}
