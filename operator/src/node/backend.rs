//! Where a node's addresses are.

pub mod route_table;
