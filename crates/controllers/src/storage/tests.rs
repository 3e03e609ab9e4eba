//! Conversations with the controllers of storage, see `testdata/storage`.

#[test]
fn conversations() {
    crate::testing::golden::play("storage");
}
