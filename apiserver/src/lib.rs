//! How Vnetpool's programs speak with the API server.

pub mod reading;
