/* Plays libnvidia-ml.so.1: two cards, of which a file named by FAKE_DRIVER says what goes wrong.

   Its first word: "well", "xid <number>", "ecc <number>", "reset", "lost" or "gone"; all is of the second card. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15 };
enum { XID_EVENT = 8 };

struct card { char uuid[16]; char name[32]; };
static struct card cards[2] = {{"GPU-one", "NVIDIA L4"}, {"GPU-two", "NVIDIA L4"}};
static int sets, registered[2], began;

static int state(const char *word, unsigned *number) {
  char found[16] = "";
  FILE *file = fopen(getenv("FAKE_DRIVER"), "r");
  *number = 0;
  if (file) {
    if (fscanf(file, "%15s %u", found, number) < 1) found[0] = 0;
    fclose(file);
  }
  return strcmp(found, word) == 0;
}

static int bad(struct card *card, const char *word) {
  unsigned number;
  return card == &cards[1] && state(word, &number);
}

int nvmlInit_v2(void) { unsigned n; if (state("gone", &n)) return 9; began++; return OK; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { began = 0; sets = 0; return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "some error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  unsigned n;
  if (!began || state("gone", &n)) return UNINITIALIZED;
  snprintf(text, size, "999.1");
  return OK;
}
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct card **card) {
  if (index > 1) return INVALID;
  *card = &cards[index];
  return bad(*card, "lost") ? LOST : OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct card **card) {
  for (int i = 0; i < 2; i++)
    if (!strcmp(cards[i].uuid, uuid)) { *card = &cards[i]; return OK; }
  return NOT_FOUND;
}
int nvmlDeviceGetUUID(struct card *card, char *text, unsigned size) { snprintf(text, size, "%s", card->uuid); return OK; }
int nvmlDeviceGetName(struct card *card, char *text, unsigned size) { snprintf(text, size, "%s", card->name); return OK; }
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(struct card *card, struct memory *memory) {
  (void)card;
  memory->total = 23034ULL << 20; memory->used = 512ULL << 20; memory->free = memory->total - memory->used;
  return OK;
}
int nvmlDeviceGetPowerManagementLimit(struct card *card, unsigned *milliwatts) { (void)card; *milliwatts = 72000; return OK; }
int nvmlDeviceGetMaxClockInfo(struct card *card, unsigned kind, unsigned *mhz) { (void)card; *mhz = kind ? 6251 : 2040; return OK; }
int nvmlDeviceGetPersistenceMode(struct card *card, unsigned *mode) { (void)card; *mode = 1; return OK; }
struct rates { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(struct card *card, struct rates *rates) { (void)card; rates->gpu = 5; rates->memory = 6; return OK; }
int nvmlDeviceGetTemperature(struct card *card, unsigned sensor, unsigned *degrees) { (void)card; (void)sensor; *degrees = 41; return OK; }
int nvmlDeviceGetTotalEccErrors(struct card *card, unsigned type, unsigned counter, unsigned long long *count) {
  unsigned number;
  if (type != 1 || counter != 0) return INVALID;
  *count = state("ecc", &number) && card == &cards[1] ? number : 0;
  return OK;
}
struct field { unsigned id, scope; long long timestamp, latency; unsigned type; int answer; unsigned long long value; };
int nvmlDeviceGetFieldValues(struct card *card, int count, struct field *fields) {
  for (int i = 0; i < count; i++) {
    fields[i].answer = OK;
    fields[i].value = bad(card, "reset") ? 1 : 0;
  }
  return OK;
}
int nvmlEventSetCreate(int **set) { *set = &sets; memset(registered, 0, sizeof registered); return OK; }
int nvmlEventSetFree(int *set) { (void)set; return OK; }
int nvmlDeviceGetSupportedEventTypes(struct card *card, unsigned long long *types) { (void)card; *types = 0xff; return OK; }
int nvmlDeviceRegisterEvents(struct card *card, unsigned long long types, int *set) {
  if (set != &sets || !(types & XID_EVENT)) return INVALID;
  registered[card - cards] = 1;
  return OK;
}
struct event { struct card *card; unsigned long long type, data; unsigned gpu_instance, compute_instance; };
int nvmlEventSetWait_v2(int *set, struct event *event, unsigned milliseconds) {
  static unsigned told;
  unsigned number;
  if (set != &sets || !registered[1]) return INVALID;
  for (unsigned waited = 0; waited < milliseconds; waited += 10) {
    if (state("xid", &number) && number != told) {
      told = number;
      memset(event, 0, sizeof *event);
      event->card = &cards[1];
      event->type = XID_EVENT;
      event->data = number;
      event->gpu_instance = event->compute_instance = 0xffffffff;
      return OK;
    }
    usleep(10000);
  }
  return TIMEOUT;
}
