package s3api

import "encoding/xml"

// restoreObject forwards RestoreObject. S3's former queries on archived
// content are refused.
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_RestoreObject.html
func (s *Server) restoreObject(c *call) error {
	body, err := c.readBody()
	if err != nil {
		return err
	}

	var doc struct {
		XMLName  xml.Name         `xml:"RestoreRequest"`
		Elements []unknownElement `xml:",any"`
	}

	if len(body) > 0 {
		if err := xml.Unmarshal(body, &doc); err != nil {
			return malformedXML(err)
		}
	}

	for _, element := range doc.Elements {
		switch element.XMLName.Local {
		case "Days", "GlacierJobParameters", "Tier":
		default:
			return notImplemented("The element "+element.XMLName.Local+" of RestoreObject", changesMeaning)
		}
	}

	return s.forwardBody(c, body)
}
