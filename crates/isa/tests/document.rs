//! `docs/isa.md` says what the code does: its tables are the list's, its example assembles.

use expect_test::expect_file;
use isa::{Program, markdown_table};

const DOCUMENT: &str = include_str!("../../../docs/isa.md");
const BEGIN: &str = "<!-- from the list: UPDATE_EXPECT=1 cargo test -p isa -->\n";
const END: &str = "<!-- end of the list -->\n";

#[test]
fn tables_are_the_list() {
    let (before, rest) = DOCUMENT.split_once(BEGIN).expect("the table's begin");
    let (_, after) = rest.split_once(END).expect("the table's end");
    let expected = format!("{before}{BEGIN}{}{END}{after}", markdown_table());
    expect_file!["../../../docs/isa.md"].assert_eq(&expected);
}

#[test]
fn example_is_a_program() {
    let (_, rest) = DOCUMENT.split_once("```systole\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let program = Program::from_text(example).expect("a valid program");
    assert_eq!(program.to_text(), example);
    let bytes = program.to_bytes().expect("a valid program");
    assert_eq!(Program::from_bytes(&bytes).as_ref(), Ok(&program));
    assert_eq!(isa::check_tokens(&program.instructions), Ok(()));
}
