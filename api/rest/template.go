package rest

import "time"

// TemplateRequest asks for the template of a pack and size. Absent fields ask for
// the defaults.
type TemplateRequest struct {
	LanguagePack string `json:"language_pack,omitempty" example:"python" doc:"The language pack; python if it is absent."`
	VCPUs        int    `json:"vcpus,omitempty" minimum:"0" example:"1" doc:"Virtual CPUs of the microVMs."`
	MemoryMiB    int    `json:"memory_mib,omitempty" minimum:"0" example:"256" doc:"Memory of the microVMs."`
	Egress       bool   `json:"egress,omitempty" doc:"Whether they have a network interface, as sandboxes with egress do."`
}

// Template is a snapshot that microVMs are restored from.
type Template struct {
	ID           string    `json:"id,omitempty" example:"6586c12ac2e4aff1" doc:"Absent as long as there are no files."`
	LanguagePack string    `json:"language_pack" example:"python"`
	Size         Size      `json:"size" doc:"The size of the microVMs."`
	Egress       bool      `json:"egress,omitempty" doc:"Whether they have a network interface."`
	State        string    `json:"state" enum:"ready,building,failed,unverified" doc:"Unverified is one from an earlier daemon that nobody has asked for yet."`
	Phase        string    `json:"phase,omitempty" example:"booting" doc:"What goes on while it is built."`
	CreatedAt    time.Time `json:"created_at,omitzero"`
	Bytes        int64     `json:"bytes,omitempty" example:"81256448" doc:"The room that it takes on the disk."`
	Apparent     int64     `json:"apparent_bytes,omitempty" example:"268451611" doc:"The length of its files, which are mostly holes."`
}

// TemplateList is the answer to a request for all templates.
type TemplateList struct {
	Templates []Template `json:"templates" nullable:"false"`
}
