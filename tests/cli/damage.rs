//! The offline tools on damaged directories: what they find, and what is no damage.
