// Package docscheck holds no code, only tests that hold the documentation
// against the program: every metric and every flag is described, and what the
// README says of its example pool is measured.
package docscheck
