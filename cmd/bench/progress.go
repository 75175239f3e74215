package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress says how far the run is: a bar in a terminal, and elsewhere a line for each
// thing that begins.
type progress struct {
	out  io.Writer
	bar  *progressbar.ProgressBar // nil where there is no terminal
	what string                   // that is being measured
}

func newProgress(out io.Writer, units int) *progress {
	p := &progress{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions(units,
			progressbar.OptionSetWriter(out), progressbar.OptionSetWidth(20), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(false), // units are not of the same length
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

// step is one unit done.
func (p *progress) step() {
	if p.bar != nil {
		p.bar.Add(1) //nolint:errcheck // the terminal has gone; the figures have not
	}
}

// end takes the bar away, so that what follows has the line for itself.
func (p *progress) end() {
	if p.bar != nil {
		p.bar.Clear() //nolint:errcheck // as above
		p.bar = nil
	}
}
