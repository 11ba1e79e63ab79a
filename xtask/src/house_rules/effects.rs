//! Printing, and reading of the environment.

use syn::visit::Visit;

use crate::source::{SourceFile, is_for_tests};

/// Macros that print.
const PRINTING: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

/// The rules that a file breaks outside of its tests, each with the number of places.
pub fn count(file: &SourceFile) -> [(&'static str, usize); 2] {
    let mut effects = Effects::default();
    effects.visit_file(&file.syntax);
    [("printing", effects.printing), ("environment", effects.environment)]
}

#[derive(Default)]
struct Effects {
    printing: usize,
    environment: usize,
}

impl<'a> Visit<'a> for Effects {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.printing += usize::from(PRINTING.iter().any(|name| call.path.is_ident(name)));
        syn::visit::visit_macro(self, call);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let mut names = path.segments.iter().map(|segment| &segment.ident);
        let environment =
            names.next().is_some_and(|name| name == "std") && names.next().is_some_and(|name| name == "env");
        self.environment += usize::from(environment);
        syn::visit::visit_path(self, path);
    }

    fn visit_use_path(&mut self, path: &'a syn::UsePath) {
        if path.ident == "std" {
            self.environment += usize::from(imports_environment(&path.tree));
        }
    }
}

fn imports_environment(tree: &syn::UseTree) -> bool {
    match tree {
        syn::UseTree::Path(path) => path.ident == "env",
        syn::UseTree::Name(name) => name.ident == "env",
        syn::UseTree::Rename(name) => name.ident == "env",
        syn::UseTree::Group(group) => group.items.iter().any(imports_environment),
        syn::UseTree::Glob(_) => false,
    }
}

#[test]
fn effects_are_counted_outside_of_tests() {
    let text = "use std::{env, fs};\nfn f() {\n    println!(\"{}\", std::env::args().count());\n    let _ = std::env::var(\"A\");\n}\n\
                #[cfg(test)]\nmod tests {\n    fn g() {\n        println!();\n    }\n}\n";
    let [printing, environment] = count(&crate::source::parsed("a.rs", &[], text));
    assert_eq!((printing.1, environment.1), (1, 2));
}
