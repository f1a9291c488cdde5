// SPDX-License-Identifier: GPL-2.0

//! Registers and flag words as types.

/// Defines a newtype over an unsigned integer whose named bits (or groups of bits) are constants
/// of the type. Bits without a name are kept as they are: what is reserved is for the caller to
/// say.
macro_rules! bits {
    (
        $(#[$doc:meta])*
        pub struct $name:ident($raw:ty) {
            $($(#[$bit_doc:meta])* $bit:ident = $value:expr;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name($raw);

        #[allow(dead_code)]
        impl $name {
            /// No bit.
            pub const NONE: Self = Self(0);
            $($(#[$bit_doc])* pub const $bit: Self = Self($value);)*
            /// Every bit that has a name.
            pub const NAMED: Self = Self(0 $(| $value)*);

            /// Wraps a raw value.
            #[inline]
            pub const fn from_raw(raw: $raw) -> Self {
                Self(raw)
            }

            /// The raw value.
            #[inline]
            pub const fn raw(self) -> $raw {
                self.0
            }

            /// True when every bit of `other` is set.
            #[inline]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// True when some bit of `other` is set.
            #[inline]
            pub const fn intersects(self, other: Self) -> bool {
                self.0 & other.0 != 0
            }

            /// True when no bit is set.
            #[inline]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// The bits of both.
            #[inline]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The bits that both have.
            #[inline]
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            /// The bits that `other` does not have.
            #[inline]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The value with the bits of `other` set or cleared.
            #[inline]
            pub const fn with(self, other: Self, on: bool) -> Self {
                if on {
                    self.union(other)
                } else {
                    self.without(other)
                }
            }
        }

        impl core::ops::BitOr for $name {
            type Output = Self;

            #[inline]
            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl core::ops::BitOrAssign for $name {
            #[inline]
            fn bitor_assign(&mut self, other: Self) {
                *self = self.union(other);
            }
        }
    };
}

pub(crate) use bits;
