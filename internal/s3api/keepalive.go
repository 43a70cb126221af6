package s3api

import (
	"encoding/xml"
	"net/http"
	"time"
)

// defaultKeepAlive is well below what clients wait for an answer to begin: 50
// s the AWS SDK for Java, 60 s boto3.
const defaultKeepAlive = 10 * time.Second

// keepAlive begins the answer of a call that takes long, and has spaces
// follow, which XML ignores: so S3 does itself. The answer is then a good one
// or none: whatever fails later ends the connection. stop must be called
// before anything else is written.
func (s *Server) keepAlive(c *call) (stop func()) {
	interval := s.KeepAlive
	if interval <= 0 {
		interval = defaultKeepAlive
	}
	ticker := time.NewTicker(interval)
	end, ended := make(chan struct{}), make(chan struct{})

	go func() {
		defer close(ended)
		text := xml.Header
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
			}

			if !c.w.begun() {
				c.w.Header().Set("Content-Type", "application/xml")
			}
			if _, err := c.w.Write([]byte(text)); err != nil {
				c.cancelContext(err)
				return
			}

			_ = http.NewResponseController(c.w.ResponseWriter).Flush()
			text = " "
		}
	}()

	return func() {
		ticker.Stop()
		close(end)
		<-ended
	}
}
