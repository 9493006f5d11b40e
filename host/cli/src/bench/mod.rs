//! `millgate bench`: what a stage costs, and what the gateway costs, on this machine.

mod gateway;
mod load;
mod stage;
mod text;
mod upstream;

pub use gateway::run as gateway;
pub use stage::run as stage;
