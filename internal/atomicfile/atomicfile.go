// Package atomicfile replaces files at once: whoever reads one sees the old
// content or the new, also after a crash of the process or of the machine.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// A File is the new content of a path. It lies beside it, under a name that
// begins with a dot, until Finish.
type File struct {
	*os.File
	path string
}

// Create begins the new content of path. The process may only be killed, or
// Finish has to be called.
func Create(path string, perm fs.FileMode) (*File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return nil, err
	}
	file := &File{File: f, path: path}
	if err := f.Chmod(perm); err != nil {
		return nil, file.Finish(err)
	}
	return file, nil
}

// Finish puts the content in its place, through to the disk. Where err is not
// nil, or where that fails, the old content stays, and the error is returned.
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
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
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
