//! Golden reader, central differences and fault injection for stillhouse's own tests.
