package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// newLog returns a JSON log on standard error, with times in RFC 3339. It is
// not sampled: an access log must be complete. The level can be changed.
func newLog(level string) (*zap.Logger, zap.AtomicLevel, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, zap.AtomicLevel{}, err
	}
	atomic := zap.NewAtomicLevelAt(parsed)
	core := newLogCore(os.Stderr, journalStream(), atomic)
	return zap.New(core, zap.ErrorOutput(zapcore.Lock(os.Stderr))), atomic, nil
}

// newLogCore returns what writes the log to out. journalStream is the value of
// the environment variable JOURNAL_STREAM.
func newLogCore(out *os.File, journalStream string, level zapcore.LevelEnabler) zapcore.Core {
	form := zap.NewProductionEncoderConfig()
	form.TimeKey = "time"
	form.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(form)
	if isJournal(out, journalStream) {
		encoder = priorityEncoder{encoder}
	}
	return zapcore.NewCore(encoder, zapcore.Lock(out), level)
}

// priorityEncoder puts the priority in front of each line, as sd-daemon(3)
// describes it. The journal removes it from the line again. With it,
// journalctl -p err shows the errors.
type priorityEncoder struct{ zapcore.Encoder }

// Clone implements zapcore.Encoder.
func (e priorityEncoder) Clone() zapcore.Encoder { return priorityEncoder{e.Encoder.Clone()} }

// EncodeEntry implements zapcore.Encoder.
func (e priorityEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line, err := e.Encoder.EncodeEntry(entry, fields)
	if err != nil {
		return nil, err
	}
	defer line.Free()

	prefixed := logBuffers.Get()
	prefixed.AppendByte('<')
	prefixed.AppendInt(priorityOf(entry.Level))
	prefixed.AppendByte('>')
	_, err = prefixed.Write(line.Bytes())
	return prefixed, err
}

//nolint:gochecknoglobals // a pool is shared by design
var logBuffers = buffer.NewPool()

// priorityOf returns the priority of a level, as in syslog(3).
func priorityOf(level zapcore.Level) int64 {
	const critical, failure, warning, info, debug = 2, 3, 4, 6, 7
	switch {
	case level >= zapcore.DPanicLevel:
		return critical
	case level == zapcore.ErrorLevel:
		return failure
	case level == zapcore.WarnLevel:
		return warning
	case level == zapcore.InfoLevel:
		return info
	default:
		return debug
	}
}

// journalStream returns the environment variable JOURNAL_STREAM.
func journalStream() string {
	return os.Getenv("JOURNAL_STREAM") //nolint:forbidigo // systemd sets this variable
}

// forJournal returns text that is not of the log, as it is printed to out: for
// the journal, each line has a priority.
func forJournal(out io.Writer, level zapcore.Level, text string) string {
	file, ok := out.(*os.File)
	if !ok || !isJournal(file, journalStream()) {
		return text
	}
	priority := fmt.Sprintf("<%d>", priorityOf(level))
	return priority + strings.ReplaceAll(text, "\n", "\n"+priority)
}

// isJournal reports whether out is connected to the journal: then JOURNAL_STREAM
// has the device and the inode of out, as systemd.exec(5) says. If out was
// redirected, the variable is that of another file.
func isJournal(out *os.File, journalStream string) bool {
	info, err := out.Stat()
	if err != nil || journalStream == "" {
		return false
	}
	device, inode, ok := fileID(info)
	return ok && journalStream == fmt.Sprintf("%d:%d", device, inode)
}
