package nfs3

// Number and Version name the protocol to RPC.
const (
	Number  = 100003
	Version = 3
)

// Procedures of RFC 1813, section 3.3.
const (
	procNull = iota
	procGetattr
	procSetattr
	procLookup
	procAccess
	procReadlink
	procRead
	procWrite
	procCreate
	procMkdir
	procSymlink
	procMknod
	procRemove
	procRmdir
	procRename
	procLink
	procReaddir
	procReaddirplus
	procFsstat
	procFsinfo
	procPathconf
	procCommit
	procedures
)

var procedureNames = [procedures]string{
	"NULL", "GETATTR", "SETATTR", "LOOKUP", "ACCESS", "READLINK", "READ", "WRITE", "CREATE", "MKDIR", "SYMLINK", "MKNOD",
	"REMOVE", "RMDIR", "RENAME", "LINK", "READDIR", "READDIRPLUS", "FSSTAT", "FSINFO", "PATHCONF", "COMMIT",
}

// ProcedureName is the name that RFC 1813 gives a procedure, in capitals, or "UNKNOWN".
func ProcedureName(proc uint32) string {
	if proc >= procedures {
		return "UNKNOWN"
	}
	return procedureNames[proc]
}

// status is an nfsstat3 (RFC 1813, section 2.6).
type status uint32

const (
	statusOK          status = 0
	statusNoEnt       status = 2
	statusIO          status = 5
	statusAcces       status = 13
	statusNotDir      status = 20
	statusIsDir       status = 21
	statusInval       status = 22
	statusROFS        status = 30
	statusNameTooLong status = 63
	statusStale       status = 70
	statusBadHandle   status = 10001
	statusTooSmall    status = 10005
	statusServerFault status = 10006
	statusJukebox     status = 10008
)

const (
	maxHandle = 64  // bytes of an nfs_fh3
	maxName   = 255 // bytes of a name that can exist

	// maxTransfer is the most that one READ returns, in bytes, and the most that one listing may fill.
	maxTransfer = 1 << 20
	// listTransfer is how large a listing is preferred.
	listTransfer = 64 << 10
	// writeTransfer is what FSINFO says of WRITE: no write succeeds, so small is kind.
	writeTransfer = 64 << 10

	attrSize     = 84           // fattr3
	postAttrSize = 4 + attrSize // post_op_attr with attributes
)

// The bits of ACCESS (section 3.3.4).
const (
	accessRead    = 0x01
	accessLookup  = 0x02
	accessModify  = 0x04
	accessExtend  = 0x08
	accessDelete  = 0x10
	accessExecute = 0x20
)
