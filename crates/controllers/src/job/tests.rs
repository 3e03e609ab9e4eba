//! Conversations with the controller, see `testdata/job`.

#[test]
fn conversations() {
    crate::testing::golden::play("job");
}
