package httpapi

import (
	"cmp"
	"context"
	"net/http"

	"github.com/emberd/emberd/api/rest"
	"github.com/emberd/emberd/internal/sandbox"
)

// Templates is what the API needs of the snapshots that microVMs are restored
// from.
type Templates interface {
	// Build returns when the template of a pack and size is ready, with egress the
	// one for microVMs with a network interface.
	Build(ctx context.Context, pack string, size sandbox.Size, egress bool) (rest.Template, error)
	List() []rest.Template
	Remove(id string) error
}

// errNoTemplates is the answer of a daemon that was told to keep none.
var errNoTemplates = &sandbox.Error{Code: sandbox.CodeCapacity, Message: "this emberd boots every microVM from its kernel"}

func (a *API) templateRoutes() []route {
	return []route{
		{
			method: "POST", path: "/templates", id: "build-template", summary: "Build a template",
			doc: "Boots and stops a microVM that others are restored from, unless there is one of the pack and size. Returns when it is ready.",
			in:  rest.TemplateRequest{}, inOptional: true, out: rest.Template{}, status: http.StatusOK,
			errors: []sandbox.Code{sandbox.CodeInvalid, sandbox.CodeUnknownPack, sandbox.CodeTooLarge, sandbox.CodeCapacity, sandbox.CodeBoot, sandbox.CodeDiskFull, sandbox.CodeClosing},
			serve:  a.buildTemplate,
		},
		{
			method: "GET", path: "/templates", id: "list-templates", summary: "List the templates",
			out: rest.TemplateList{}, status: http.StatusOK,
			serve: a.listTemplates,
		},
		{
			method: "DELETE", path: "/templates/{id}", id: "delete-template", summary: "Delete a template",
			doc:    "MicroVMs that were restored from it go on. It is built anew when it is needed.",
			status: http.StatusNoContent,
			errors: []sandbox.Code{sandbox.CodeNotFound, sandbox.CodeCapacity},
			serve:  a.deleteTemplate,
		},
	}
}

func (a *API) buildTemplate(w http.ResponseWriter, r *http.Request) (any, error) {
	body, err := a.readBody(w, r, rest.MaxSmallBody)
	if err != nil {
		return nil, err
	}
	var req rest.TemplateRequest
	if len(body) > 0 {
		if err := decode(body, templateShape, &req); err != nil {
			return nil, err
		}
	}
	if a.templates == nil {
		return nil, errNoTemplates
	}
	limits, err := a.limits.Resolve(sandbox.Limits{Size: sandbox.Size{VCPUs: req.VCPUs, MemoryMiB: req.MemoryMiB}})
	if err != nil {
		return nil, err
	}
	t, err := a.templates.Build(r.Context(), cmp.Or(req.LanguagePack, sandbox.DefaultPack), limits.Size, req.Egress)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (a *API) listTemplates(http.ResponseWriter, *http.Request) (any, error) {
	out := rest.TemplateList{Templates: []rest.Template{}}
	if a.templates != nil {
		out.Templates = a.templates.List()
	}
	return out, nil
}

func (a *API) deleteTemplate(_ http.ResponseWriter, r *http.Request) (any, error) {
	if a.templates == nil {
		return nil, errNoTemplates
	}
	return nil, a.templates.Remove(r.PathValue("id"))
}
