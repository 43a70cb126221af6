package main

import (
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
)

// openAudit opens the audit log, if it is configured. Only serve opens it: a
// command that another user runs could create a file to which the proxy may
// not write.
func (s *server) openAudit(cfg config.Audit) (err error) {
	out := audit.Config{
		File:     cfg.File,
		MaxSize:  int64(cfg.MaxSizeMB) << 20,
		MaxAge:   time.Duration(cfg.MaxAgeDays) * 24 * time.Hour,
		MaxFiles: cfg.MaxFiles,
		Now:      time.Now,
		Trouble:  func(err error) { s.log.Error("managing the audit log's files failed", zap.Error(err)) },
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

// record writes to the audit log, if there is one. An error is counted and
// logged.
func (s *server) record(r audit.Record) error {
	if s.audit == nil {
		return nil
	}
	err := s.audit.Write(r)
	if err != nil {
		s.metrics.Unaudited.Inc()
		s.log.Error("writing to the audit log failed", zap.String("event", r.Event), zap.String("result", r.Result),
			zap.String("request_id", r.RequestID), zap.String("kms_key_name", r.KMSKeyName), zap.Error(err))
	}
	return err
}

func (s *server) reopenAudit() {
	if s.audit == nil {
		return
	}
	if err := s.audit.Reopen(); err != nil {
		s.log.Error("reopening the audit log failed; no key is used until it succeeds", zap.Error(err))
	}
}
