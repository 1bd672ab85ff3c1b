//! The subcommands besides `serve`, one file each.

pub mod config_show;
pub mod manifests;
pub mod run;
pub mod validate;
