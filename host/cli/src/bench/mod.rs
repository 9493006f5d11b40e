//! `millgate bench`: what a stage costs, and what the gateway costs, on this machine.

mod load;
mod process;
mod upstream;
