package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far the run is: with a bar in a terminal, elsewhere with a line for each
// measurement that begins.
type progress struct {
	out  io.Writer
	bar  *progressbar.ProgressBar // nil without a terminal
	what string                   // what is being measured
}

func newProgress(out io.Writer, units int) *progress {
	p := &progress{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions(units,
			progressbar.OptionSetWriter(out), progressbar.OptionSetWidth(20), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false), // units don't take equally long
			progressbar.OptionSetElapsedTime(true), progressbar.OptionThrottle(100*time.Millisecond))
	}
	return p
}

func (p *progress) say(what string) {
	if p.what == what {
		return
	}
	p.what = what
	if p.bar == nil {
		fmt.Fprintln(p.out, what)
	} else {
		p.bar.Describe(fmt.Sprintf("%-60.60s", what))
	}
}

// step records that one unit is done.
func (p *progress) step() {
	if p.bar != nil {
		p.bar.Add(1) //nolint:errcheck // the terminal is gone, but the figures still count
	}
}

// end removes the bar, so that the next output has the line to itself.
func (p *progress) end() {
	if p.bar != nil {
		p.bar.Clear() //nolint:errcheck // as above
		p.bar = nil
	}
}
