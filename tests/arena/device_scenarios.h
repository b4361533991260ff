/* Scenarios of slots in the memory of a GPU, for the table of all. */
#ifndef ONECOPY_DEVICE_SCENARIOS_H
#define ONECOPY_DEVICE_SCENARIOS_H

void device_states(void);
void device_spill(void);
void device_random(void);
void device_threads(void);

#endif
