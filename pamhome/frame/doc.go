// Package frame is the helper's half of the wire to pam_home.so: one frame per
// packet of a SOCK_SEQPACKET socket, one request outstanding at most. It knows
// bytes, bounds and PAM's numbers; what a request is for, and whether a login
// may go on, is left to its caller. Secrets go from the packet, which lies in
// locked memory, straight into secret.Bytes.
//
//	header  u16 type, u16 flags (0), u32 length of what follows
//	field   u8 tag, u32 length, bytes; repeated to the packet's end
//
// All integers are little endian. Unknown tags are skipped; any other
// departure from the tables is a breach, which ends the connection.
package frame
