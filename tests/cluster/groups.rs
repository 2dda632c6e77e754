//! Consumer groups, as any client sees them that only has the `.proto` files.

mod member;
mod moving;
mod offsets;
mod whole;
