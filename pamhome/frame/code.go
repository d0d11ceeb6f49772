package frame

import "strconv"

// Code is a result of Linux-PAM (security/_pam_types.h).
type Code int32

// The results that a hook returns or meets.
const (
	Success         Code = 0
	ServiceErr      Code = 3
	SystemErr       Code = 4
	BufErr          Code = 5
	PermDenied      Code = 6
	AuthErr         Code = 7
	AuthInfoUnavail Code = 9
	UserUnknown     Code = 10
	MaxTries        Code = 11
	NewAuthTokReqd  Code = 12
	AcctExpired     Code = 13
	SessionErr      Code = 14
	ConvErr         Code = 19
	AuthTokErr      Code = 20
	TryAgain        Code = 24
	Ignore          Code = 25
	AuthTokExpired  Code = 27
	BadItem         Code = 29
)

var codeNames = map[Code]string{
	Success: "SUCCESS", ServiceErr: "SERVICE_ERR", SystemErr: "SYSTEM_ERR", BufErr: "BUF_ERR",
	PermDenied: "PERM_DENIED", AuthErr: "AUTH_ERR", AuthInfoUnavail: "AUTHINFO_UNAVAIL",
	UserUnknown: "USER_UNKNOWN", MaxTries: "MAXTRIES", NewAuthTokReqd: "NEW_AUTHTOK_REQD",
	AcctExpired: "ACCT_EXPIRED", SessionErr: "SESSION_ERR", ConvErr: "CONV_ERR",
	AuthTokErr: "AUTHTOK_ERR", TryAgain: "TRY_AGAIN", Ignore: "IGNORE",
	AuthTokExpired: "AUTHTOK_EXPIRED", BadItem: "BAD_ITEM",
}

// String returns the code as C spells it, without PAM_.
func (c Code) String() string {
	if s, ok := codeNames[c]; ok {
		return s
	}
	return strconv.Itoa(int(c))
}
