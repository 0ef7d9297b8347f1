module github.com/oodmon/oodmon/internal/kernel/gen

go 1.26.0

require (
	github.com/mmcloughlin/avo v0.5.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
)
