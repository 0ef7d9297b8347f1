package drift

// mix is the finaliser of splitmix64: each bit of the answer depends on all of x.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// random returns the 64 random bits of a record. They depend on the secret key
// and on where the record is in the log and on nothing else, so that a replay
// draws the same. seed is that of its partition.
func random(seed uint64, offset int64, row int32) uint64 {
	h := mix(seed ^ uint64(offset))
	return mix(h ^ (uint64(uint32(row)) << 1) ^ 1)
}

func seedOf(key uint64, partition int32) uint64 {
	return mix(key + 0x9e3779b97f4a7c15*uint64(uint32(partition)+1))
}
