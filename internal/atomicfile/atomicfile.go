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
)

// A File is the new content of a path. It lies beside it, under a name that
// begins with a dot, until Finish.
type File struct {
	*os.File
	path string
}

// Create begins the new content of path, with permissions that the umask narrows.
// The process may only be killed, or Finish has to be called.
func Create(path string, perm fs.FileMode) (*File, error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp-"+strconv.FormatUint(rand.Uint64(), 36))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return &File{File: f, path: path}, nil
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
