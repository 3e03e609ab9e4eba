//! Conversations with the controller, see `testdata/stateful_set`.

#[test]
fn conversations() {
    crate::testing::golden::play("stateful_set");
}
