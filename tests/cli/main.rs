//! Tests of the `quipu` command on real directories, made through the library.

mod damage;
mod offline;
mod support;
