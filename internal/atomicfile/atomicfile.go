// Package atomicfile replaces files at once: whoever reads one sees the old
// content or the new, also after a crash of the process or of the machine.
package atomicfile

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A File is the new content of a path. It lies beside it, under a name that
// begins with a dot, until Finish.
type File struct {
	*os.File
	path string
}

// staleAfter is when a file that nobody has written to belongs to no process any more.
const staleAfter = 24 * time.Hour

// Create begins the new content of path, with permissions that the umask narrows.
// The process may only be killed, or Finish has to be called. What a killed one
// left beside the same path is removed after a day.
func Create(path string, perm fs.FileMode) (*File, error) {
	prefix := "." + filepath.Base(path) + ".tmp-"
	removeStale(filepath.Dir(path), prefix)
	name := filepath.Join(filepath.Dir(path), prefix+strconv.FormatUint(rand.Uint64(), 36))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return &File{File: f, path: path}, nil
}

// removeStale removes what it can: the new content does not depend on it.
func removeStale(dir, prefix string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), prefix) {
			continue
		}
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > staleAfter {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}

// Finish puts the content in its place. Where err is not nil, or where that
// fails, the old content stays, and the error is returned.
func (f *File) Finish(err error) error {
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), f.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	// The rename itself outlives a crash of the machine where the folder can be
	// synced, which not every file system and folder allows.
	if dir, err := os.Open(filepath.Dir(f.path)); err == nil {
		_ = errors.Join(dir.Sync(), dir.Close())
	}
	return nil
}

// Write replaces the whole content of path.
func Write(path string, content []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return f.Finish(err)
}
