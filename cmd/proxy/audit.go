package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
)

// openAudit opens the audit log, if there is to be one. It is that of the
// proxy that serves: a command that another user runs would leave behind a
// file that the proxy may not write to.
func (s *server) openAudit(cfg config.Audit) (err error) {
	out := audit.Config{
		File: cfg.File, MaxSize: int64(cfg.MaxSizeMB) << 20, MaxAge: time.Duration(cfg.MaxAgeDays) * 24 * time.Hour, MaxFiles: cfg.MaxFiles,
		Now:     time.Now,
		Trouble: func(err error) { s.log.Error("the audit log's files", zap.Error(err)) },
	}
	switch {
	case cfg.Stdout:
		out.Out = os.Stdout
	case cfg.File == "":
		return nil
	}
	s.audit, err = audit.New(out)
	return err
}

// record writes to the audit log, if there is one. What it fails for is
// counted, and named in the other log.
func (s *server) record(r audit.Record) error {
	if s.audit == nil {
		return nil
	}
	err := s.audit.Write(r)
	if err != nil {
		s.metrics.Unaudited.Inc()
		s.log.Error("not written to the audit log", zap.String("event", r.Event), zap.String("result", r.Result),
			zap.String("request_id", r.RequestID), zap.String("kms_key_name", r.KMSKeyName), zap.Error(err))
	}
	return err
}

func (s *server) reopenAudit() {
	if s.audit == nil {
		return
	}
	if err := s.audit.Reopen(); err != nil {
		s.log.Error("the audit log cannot be opened anew; no key is used until it can be", zap.Error(err))
	}
}

// checkAudit tests whether the audit log could be written, and leaves nothing
// behind.
func checkAudit(cfg config.Audit) error {
	if cfg.File == "" {
		return nil
	}
	file, err := os.OpenFile(cfg.File, os.O_APPEND|os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if file, err = os.CreateTemp(filepath.Dir(cfg.File), ".cmekproxy-check-*"); err == nil {
			err = os.Remove(file.Name())
		}
	}
	if err != nil {
		return fmt.Errorf("it could not be written: %w", err)
	}
	return file.Close()
}
