//! Conversations with the controller, see `testdata/daemon_set`.

#[test]
fn conversations() {
    crate::testing::golden::play("daemon_set");
}
