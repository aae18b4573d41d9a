//! Tests that use only the public interface.

mod directory;
