// Package doctor finds out what keeps a slave from reading, or will one day, and says so in plain words.
//
// It works in two steps that know nothing of each other. Gather looks: it asks every name server, talks to every master as
// the kernel would (connect from a port below 1024, NULL, HELLO, EXPORT, MNT, LOOKUP and READ of one file, over a small
// client of its own), and looks at this host's kernel, ports and agent. What it finds are [Facts]. Judge is a pure function
// from those to [Finding] values: what was checked, how it is, and what to do about it.
//
// Nothing is changed by it, and nothing below a mount is ever touched: a mount that hangs does not hang the doctor.
// Masters are greeted without a slave's name, so that nobody is enrolled.
package doctor
