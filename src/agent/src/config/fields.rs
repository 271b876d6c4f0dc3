//! How the two configuration kinds are written down: one row per field makes the struct's field, its
//! default, its line in the documentation. `docs/configuration.md` is checked against these rows.

use super::units::GoDuration;

/// What a field does in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It takes effect.
    Now,
    /// Read and checked, but what it steers does not exist yet: setting it gives a warning.
    Later,
    /// Read and without effect for good; upstream's field has none either, or is not about Linux.
    Never,
}

/// One row of a configuration kind.
#[derive(Clone, Copy, Debug)]
pub struct FieldInfo {
    /// As the file spells it.
    pub name: &'static str,
    pub effect: Effect,
    /// What it is, in a few words; units and range where they matter.
    pub what: &'static str,
}

/// Values that count as "not given" where the Go type is not a pointer: the default replaces them.
pub trait FillZero {
    fn is_unset(&self) -> bool;
}

impl FillZero for i32 {
    fn is_unset(&self) -> bool {
        *self == 0
    }
}

impl FillZero for i64 {
    fn is_unset(&self) -> bool {
        *self == 0
    }
}

impl FillZero for String {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl FillZero for GoDuration {
    fn is_unset(&self) -> bool {
        self.is_zero()
    }
}

/// `"jsonName" field: Type = default, fill|keep, Effect, "what";` per field. `fill` replaces an
/// explicit zero by the default, as Kubernetes does for fields that are not pointers.
macro_rules! config_fields {
    (@fill fill $value:ident $default:ident $field:ident) => {
        if $crate::config::fields::FillZero::is_unset(&$value.$field) {
            $value.$field = $default.$field.clone();
        }
    };
    (@fill keep $value:ident $default:ident $field:ident) => {};
    (
        $(#[$meta:meta])* $name:ident, $table:ident {
            $( $json:literal $field:ident : $ty:ty = $default:expr, $zero:ident, $effect:ident, $what:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $( #[doc = $what] #[serde(rename = $json)] pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            /// Puts the default where an explicit zero stands for "not given".
            pub fn fill_zeroes(&mut self) {
                let default = Self::default();
                let value = self;
                $( config_fields!(@fill $zero value default $field); )*
            }
        }

        /// One row per field, in the order of the documentation.
        pub const $table: &[$crate::config::fields::FieldInfo] = &[
            $( $crate::config::fields::FieldInfo {
                name: $json,
                effect: $crate::config::fields::Effect::$effect,
                what: $what,
            }, )*
        ];
    };
}
pub(crate) use config_fields;
