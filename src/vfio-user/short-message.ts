/** A message of so many bytes is put into a socket as a whole or not at all: the least buffer of a socket has twice the room. */
export const SHORT_MESSAGE = 2048;
