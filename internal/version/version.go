// Package version names this build of emberd.
package version

// Version is the release, set with the linker's -X flag; a build without it is
// "dev".
var Version = "dev"
