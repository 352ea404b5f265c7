package agentv1

//go:generate sh -c "PATH=$(go tool -n protoc-gen-go | xargs dirname):$PATH protoc --go_out=. --go_opt=paths=source_relative agent.proto"
