//! Functions with their lengths and arguments, and public items.

use syn::spanned::Spanned;
use syn::visit::Visit;

use super::{Role, SourceFile, is_for_tests};

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name, with that of its type: `Walk::file`.
    pub name: String,
    /// The line of its signature.
    pub line: usize,
    /// Lines from the signature to the closing brace.
    pub lines: usize,
    /// Arguments without `self`.
    pub arguments: usize,
}

/// All functions of a file, those of tests included. Functions that a macro makes are not seen.
pub fn functions(file: &SourceFile) -> Vec<Function> {
    let mut found = Functions { of: String::new(), list: Vec::new() };
    found.visit_file(&file.syntax);
    found.list
}

struct Functions {
    /// The type that an implementation is of, with `::`.
    of: String,
    list: Vec<Function>,
}

impl Functions {
    fn add(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let (start, end) = (signature.span().start().line, body.span().end().line);
        let arguments = signature.inputs.iter().filter(|input| matches!(input, syn::FnArg::Typed(_))).count();
        let name = format!("{}{}", self.of, signature.ident);
        self.list.push(Function { name, line: start, lines: end + 1 - start, arguments });
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        let of = match item.self_ty.as_ref() {
            syn::Type::Path(of) => of.path.segments.last().map(|segment| format!("{}::", segment.ident)),
            _ => None,
        };
        let outer = std::mem::replace(&mut self.of, of.unwrap_or_default());
        syn::visit::visit_item_impl(self, item);
        self.of = outer;
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.add(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'a syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.add(&item.sig, body);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}

/// How many items of a library's file are declared `pub`, methods included and fields not; 0 for other files.
pub fn public_items(file: &SourceFile) -> usize {
    if file.role != Role::Library {
        return 0;
    }
    let mut found = PublicItems(0);
    found.visit_file(&file.syntax);
    found.0
}

struct PublicItems(usize);

impl PublicItems {
    fn add(&mut self, visibility: &syn::Visibility) {
        self.0 += usize::from(matches!(visibility, syn::Visibility::Public(_)));
    }
}

impl<'a> Visit<'a> for PublicItems {
    fn visit_item(&mut self, item: &'a syn::Item) {
        match item {
            syn::Item::Mod(item) if is_for_tests(&item.attrs) => return,
            syn::Item::Const(item) => self.add(&item.vis),
            syn::Item::Enum(item) => self.add(&item.vis),
            syn::Item::Fn(item) => self.add(&item.vis),
            syn::Item::Mod(item) => self.add(&item.vis),
            syn::Item::Static(item) => self.add(&item.vis),
            syn::Item::Struct(item) => self.add(&item.vis),
            syn::Item::Trait(item) => self.add(&item.vis),
            syn::Item::Type(item) => self.add(&item.vis),
            syn::Item::Macro(item) => {
                self.0 += usize::from(item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")));
            }
            _ => {}
        }
        syn::visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.add(&item.vis);
    }

    fn visit_impl_item_const(&mut self, item: &'a syn::ImplItemConst) {
        self.add(&item.vis);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parsed;

    const TEXT: &str = "pub struct A {\n    pub x: u8,\n}\n\nimpl A {\n    pub fn f(&self, a: u8, b: u8) {\n        let _ = (a, b);\n    \
                        }\n    fn g() {}\n}\n\npub(crate) trait T {\n    fn h(&self);\n    fn i(&self) {}\n}\n\npub use crate::x;\n\n\
                        #[cfg(test)]\nmod tests {\n    pub fn j() {}\n}\n";

    #[test]
    fn functions_have_lengths_and_arguments() {
        let found = functions(&parsed("a.rs", &[], TEXT));
        let names: Vec<&str> = found.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(names, ["A::f", "A::g", "i", "j"]);
        assert_eq!(found[0], Function { name: "A::f".to_owned(), line: 6, lines: 3, arguments: 2 });
    }

    #[test]
    fn public_items_are_counted_in_libraries() {
        assert_eq!(public_items(&parsed("a.rs", &[], TEXT)), 2);
        assert_eq!(public_items(&SourceFile { role: Role::Program, ..parsed("a.rs", &[], TEXT) }), 0);
    }
}
