//! What keeps a guest from doing more than its image asks for: on unless a
//! recipe gives a reason.
//!
//! What holds for every guest and has no switch is not here: there is no console
//! login, the guest agent is the only program that an image does not bring, and
//! no process of the workload runs before a verifier has said yes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The part of every guest's kernel command line that nothing switches off.
///
/// `console=` must be named, or systemd-stub adds one of its own choice and the
/// command line is no longer the one in `guest.json`.
const CONSTANT_CMDLINE: &str = "console=ttyS0 quiet";

/// Longest reason.
const MAX_REASON_LEN: usize = 512;

/// Something that is on in every guest, unless an [`Exception`] says why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Setting {
    /// A kernel in doubt ends the guest: `panic=-1 oops=panic`.
    PanicReboot,
    /// Root in the guest cannot change the measured kernel: `lockdown=integrity`.
    Lockdown,
    /// The kernel loads modules of its own build alone: `module.sig_enforce=1`.
    ModuleSignatures,
    /// Memory is zeroed before it is used: `init_on_alloc=1`.
    InitOnAlloc,
    /// The workload's root is read-only, apart from `/run`, `/tmp`, `/var/tmp`
    /// and the volumes that its image declares.
    ReadOnlyRoot,
    /// What is written there cannot be run.
    NoExec,
}

impl Setting {
    /// All, in the order of the command line.
    pub const ALL: [Self; 6] = [
        Self::PanicReboot,
        Self::Lockdown,
        Self::ModuleSignatures,
        Self::InitOnAlloc,
        Self::ReadOnlyRoot,
        Self::NoExec,
    ];

    /// The kernel parameters that it consists of; none for what the guest agent
    /// does.
    pub fn parameters(self) -> &'static str {
        match self {
            Self::PanicReboot => "panic=-1 oops=panic",
            Self::Lockdown => "lockdown=integrity",
            Self::ModuleSignatures => "module.sig_enforce=1",
            Self::InitOnAlloc => "init_on_alloc=1",
            Self::ReadOnlyRoot | Self::NoExec => "",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `hardening` of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hardening {
    /// What is switched off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
}

/// A setting that is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exception {
    /// Which.
    pub setting: Setting,
    /// Why, for whoever reviews the image. It is copied to `manifest.json`.
    pub reason: String,
}

/// Exceptions that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HardeningError {
    /// A setting is named twice.
    #[error("exceptions: {0} is named twice; keep one reason")]
    Duplicate(Setting),
    /// There is no reason, or one that no table can show.
    #[error(
        "exceptions: the reason for {0} must be one line of 1 to {MAX_REASON_LEN} characters that \
         says why it is off"
    )]
    Reason(Setting),
}

impl Hardening {
    /// Whether nothing is switched off.
    pub fn is_default(&self) -> bool {
        self.exceptions.is_empty()
    }

    /// Checks every exception.
    ///
    /// # Errors
    /// See [`HardeningError`].
    pub fn validate(&self) -> Result<ValidHardening, HardeningError> {
        let mut reasons = BTreeMap::new();
        for Exception { setting, reason } in &self.exceptions {
            let readable = !reason.trim().is_empty()
                && reason.chars().count() <= MAX_REASON_LEN
                && !reason.chars().any(char::is_control);
            if !readable {
                return Err(HardeningError::Reason(*setting));
            }
            if reasons.insert(*setting, reason.clone()).is_some() {
                return Err(HardeningError::Duplicate(*setting));
            }
        }
        Ok(ValidHardening { reasons })
    }
}

/// What is on, and why the rest is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValidHardening {
    /// Reasons of what is off.
    reasons: BTreeMap<Setting, String>,
}

impl ValidHardening {
    /// Whether a setting is on.
    pub fn is_on(&self, setting: Setting) -> bool {
        !self.reasons.contains_key(&setting)
    }

    /// The constant part of the kernel command line.
    pub fn cmdline(&self) -> String {
        Setting::ALL
            .into_iter()
            .filter(|setting| self.is_on(*setting))
            .map(Setting::parameters)
            .filter(|parameters| !parameters.is_empty())
            .fold(CONSTANT_CMDLINE.to_owned(), |cmdline, parameters| {
                cmdline + " " + parameters
            })
    }

    /// A row for each setting, as the manifest has it.
    pub fn states(&self) -> BTreeMap<Setting, SettingState> {
        Setting::ALL
            .into_iter()
            .map(|setting| {
                let state = match self.reasons.get(&setting) {
                    None => SettingState::On,
                    Some(reason) => SettingState::Off {
                        reason: reason.clone(),
                    },
                };
                (setting, state)
            })
            .collect()
    }

    /// The recipe's section.
    pub fn to_recipe(&self) -> Hardening {
        let exceptions = self.reasons.iter().map(|(setting, reason)| Exception {
            setting: *setting,
            reason: reason.clone(),
        });
        Hardening {
            exceptions: exceptions.collect(),
        }
    }
}

/// Whether a setting is on, as `manifest.json` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", deny_unknown_fields)]
pub enum SettingState {
    /// On.
    On,
    /// Off.
    Off {
        /// Why.
        reason: String,
    },
}

/// What a manifest's rows say, as a recipe's section: each setting is there, and
/// reasons are reasons. `None` where that is not so.
pub fn parse_states(states: &BTreeMap<Setting, SettingState>) -> Option<ValidHardening> {
    if states.len() != Setting::ALL.len() {
        return None;
    }
    let exceptions = states
        .iter()
        .filter_map(|(setting, state)| match state {
            SettingState::On => None,
            SettingState::Off { reason } => Some(Exception {
                setting: *setting,
                reason: reason.clone(),
            }),
        })
        .collect();
    Hardening { exceptions }.validate().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off(settings: &[Setting]) -> Hardening {
        let exceptions = settings.iter().map(|setting| Exception {
            setting: *setting,
            reason: "a test".to_owned(),
        });
        Hardening {
            exceptions: exceptions.collect(),
        }
    }

    #[test]
    fn everything_is_on_by_itself() {
        // Changing this changes launch digests: see CHANGELOG, MEASUREMENT.
        assert_eq!(
            Hardening::default().validate().unwrap().cmdline(),
            "console=ttyS0 quiet panic=-1 oops=panic lockdown=integrity module.sig_enforce=1 \
             init_on_alloc=1"
        );
    }

    #[test]
    fn an_exception_takes_its_parameters_and_no_others() {
        let all = Hardening::default().validate().unwrap().cmdline();
        for setting in Setting::ALL {
            let valid = off(&[setting]).validate().unwrap();
            let without = match setting.parameters() {
                "" => all.clone(),
                parameters => all.replace(&format!(" {parameters}"), ""),
            };
            assert_eq!(valid.cmdline(), without, "{setting}");
            assert!(!valid.is_on(setting));
            let states = valid.states();
            assert_eq!(states.len(), Setting::ALL.len());
            assert_eq!(parse_states(&states), Some(valid.clone()));
            assert_eq!(valid.to_recipe(), off(&[setting]));
        }
    }

    #[test]
    fn a_reason_is_needed_once() {
        let twice = off(&[Setting::Lockdown, Setting::Lockdown]);
        assert_eq!(
            twice.validate().unwrap_err(),
            HardeningError::Duplicate(Setting::Lockdown)
        );
        for reason in ["", "  ", "two\nlines", &"x".repeat(513)] {
            let mut hardening = off(&[Setting::NoExec]);
            hardening.exceptions[0].reason = reason.to_owned();
            assert_eq!(
                hardening.validate().unwrap_err(),
                HardeningError::Reason(Setting::NoExec)
            );
        }
    }

    #[test]
    fn a_manifest_must_speak_of_every_setting() {
        let mut states = Hardening::default().validate().unwrap().states();
        states.remove(&Setting::NoExec);
        assert_eq!(parse_states(&states), None);
    }
}
