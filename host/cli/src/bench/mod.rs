//! `millgate bench`: what a stage costs, what the gateway costs, and how fast a model is, on this machine.

mod gateway;
mod load;
mod model;
mod stage;
mod text;
mod upstream;

pub use gateway::run as gateway;
pub use model::run as model;
pub use stage::run as stage;
pub use text::english;
