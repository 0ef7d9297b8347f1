package trainer

import "testing"

// A spool has no name, so that nothing of it is left when the process is killed.
func TestSpoolLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	s, err := newSpool(dir, 2, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	empty(t, dir)
	if err := s.append(1, 5, []float32{0.6, 0.8}); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	row := make([]float32, s.size(1))
	if err := s.read(0, row); err != nil {
		t.Fatal(err)
	}
	if x := row[rowHeader:]; x[0] != 0.6 || x[1] != 0.8 {
		t.Errorf("read %v, want [0.6 0.8]", x)
	}
}
