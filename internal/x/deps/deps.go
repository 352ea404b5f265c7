package deps
import (
 _ "github.com/danielgtaylor/huma/v2"
 _ "github.com/danielgtaylor/huma/v2/adapters/humago"
 _ "github.com/hashicorp/yamux"
 _ "github.com/spf13/cobra"
 _ "google.golang.org/protobuf/proto"
 _ "github.com/mdlayher/vsock"
 _ "github.com/google/renameio/v2"
 _ "github.com/rogpeppe/go-internal/testscript"
 _ "go.uber.org/goleak"
 _ "golang.org/x/sys/unix"
 _ "golang.org/x/sync/errgroup"
 _ "golang.org/x/term"
 _ "github.com/pelletier/go-toml/v2"
 _ "github.com/u-root/u-root/pkg/cpio"
 _ "github.com/pierrec/lz4/v4"
)
