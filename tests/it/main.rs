//! The whole, from outside: the main job as a process, and the rules of the repository.

mod cli;
mod crates;
mod deliver;
mod kill;
mod operations;
mod tidy;
