// A PKCS #11 module in front of another module, FAULTY_TARGET. The file
// FAULTY_CONTROL controls it:
//
//	C_Name 0x32 once     the next call of that function returns 0x32 and is not passed on
//	C_Name 0x32 always   the same for every call
//	C_Name hang          calls of it wait until the file is removed
//	nonce                C_EncryptInit accepts only a GCM nonce of zeros, and replaces it
//	zeros                C_EncryptInit accepts only a GCM nonce of zeros, and keeps it
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CK_PTR *
#define NULL_PTR 0
#define CK_DEFINE_FUNCTION(type, name) type name
#define CK_DECLARE_FUNCTION(type, name) type name
#define CK_DECLARE_FUNCTION_POINTER(type, name) type(*name)
#define CK_CALLBACK_FUNCTION(type, name) type(*name)
#include "pkcs11.h"

static CK_FUNCTION_LIST list;
static CK_FUNCTION_LIST_PTR target;

// fault returns the value that a call must return instead of the real one, or CKR_OK.
static CK_RV fault(const char *name) {
	for (;;) {
		char function[64] = "", value[32] = "", often[16] = "";
		FILE *f = fopen(getenv("FAULTY_CONTROL"), "r");
		if (f == NULL) return CKR_OK;
		int n = fscanf(f, "%63s %31s %15s", function, value, often);
		fclose(f);
		if (n < 2 || strcmp(function, name) != 0) return CKR_OK;
		if (strcmp(value, "hang") != 0) {
			if (strcmp(often, "once") == 0) unlink(getenv("FAULTY_CONTROL"));
			return strtoul(value, NULL, 16);
		}
		usleep(5000);
	}
}

static int mode(const char *name) {
	char word[64] = "";
	FILE *f = fopen(getenv("FAULTY_CONTROL"), "r");
	if (f == NULL) return 0;
	int n = fscanf(f, "%63s", word);
	fclose(f);
	return n == 1 && strcmp(word, name) == 0;
}

#define FAULT(name) do { CK_RV rv = fault(#name); if (rv != CKR_OK) return rv; } while (0)

static CK_RV encryptInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k) {
	FAULT(C_EncryptInit);
	CK_GCM_PARAMS *gcm = m->pParameter;
	if (mode("nonce") || mode("zeros")) {
		for (CK_ULONG i = 0; i < gcm->ulIvLen; i++)
			if (gcm->pIv[i] != 0) return CKR_MECHANISM_PARAM_INVALID;
		if (mode("nonce")) {
			CK_RV rv = target->C_GenerateRandom(s, gcm->pIv, gcm->ulIvLen);
			if (rv != CKR_OK) return rv;
		}
	}
	return target->C_EncryptInit(s, m, k);
}

static CK_RV encrypt(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m) {
	FAULT(C_Encrypt);
	return target->C_Encrypt(s, in, n, out, m);
}

static CK_RV decryptInit(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k) {
	FAULT(C_DecryptInit);
	return target->C_DecryptInit(s, m, k);
}

static CK_RV decrypt(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR m) {
	CK_RV rv = fault("C_Decrypt");
	if (rv != CKR_OK) { // this ends the operation, according to the specification
		CK_BYTE junk[64] = {0};
		CK_ULONG size = sizeof junk;
		target->C_Decrypt(s, junk, 20, junk, &size);
		return rv;
	}
	return target->C_Decrypt(s, in, n, out, m);
}

static CK_RV openSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR p, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR s) {
	FAULT(C_OpenSession);
	return target->C_OpenSession(slot, flags, p, notify, s);
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG n) {
	FAULT(C_Login);
	return target->C_Login(s, user, pin, n);
}

static CK_RV slots(CK_BBOOL present, CK_SLOT_ID_PTR ids, CK_ULONG_PTR n) {
	FAULT(C_GetSlotList);
	return target->C_GetSlotList(present, ids, n);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out) {
	void *library = dlopen(getenv("FAULTY_TARGET"), RTLD_NOW);
	if (library == NULL) return CKR_GENERAL_ERROR;
	CK_C_GetFunctionList get = dlsym(library, "C_GetFunctionList");
	CK_RV rv = get(&target);
	if (rv != CKR_OK) return rv;
	list = *target;
	list.C_GetFunctionList = C_GetFunctionList;
	list.C_EncryptInit = encryptInit;
	list.C_Encrypt = encrypt;
	list.C_DecryptInit = decryptInit;
	list.C_Decrypt = decrypt;
	list.C_OpenSession = openSession;
	list.C_Login = login;
	list.C_GetSlotList = slots;
	*out = &list;
	return CKR_OK;
}
