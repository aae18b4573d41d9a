//! What must not compile, and what the compiler says to it: each case in `ui/` has its message
//! beside it. After a change on purpose, `TRYBUILD=overwrite cargo test -p coral-core --all-features --test ui`
//! writes the messages anew; read them before they are committed, they are part of the API.

// How a message writes a type depends on what else is built: the messages are those of all features.
#[cfg(feature = "sim")]
#[test]
fn misuse_does_not_compile_and_says_why() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
