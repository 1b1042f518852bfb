;; A rule written by hand, from guest-sdk/ABI.md alone: it drops GitHub's `ping`, and forwards every
;; other event to the channel `mail` with its type as title.
;;
;; Make a module of it with any assembler of WebAssembly text, such as `wasm-tools parse` or
;; `wat2wasm`, and try it: hooksieve replay --rule forward.wasm --type ping event.json

(module
  ;; The one thing a rule may import: log(level, text, length). Level 0 is a line of the log.
  (import "hooksieve" "log" (func $log (param i32 i32 i32)))

  ;; One page holds the texts below; the input goes behind them.
  (memory (export "memory") 1)

  ;; {"reason": "a ping", "actions": []}
  (data (i32.const 0) "\82\a6reason\a6a ping\a7actions\90")            ;; 24 bytes
  ;; {"reason": "forwarded", "actions": [{"channel": "mail", "message": {"title": and here the type
  (data (i32.const 32)
    "\82\a6reason\a9forwarded\a7actions\91\82\a7channel\a4mail\a7message\81\a5title") ;; 56 bytes
  (data (i32.const 96) "GitHub says hello")                            ;; 17 bytes

  ;; The first free byte. The engine gives every event a new instance, so nothing is ever freed.
  (global $free (mut i32) (i32.const 128))

  ;; States the version of the contract, by its name.
  (func (export "hooksieve_abi_1"))

  ;; A place for `length` bytes, aligned to 8, or 0 where memory cannot grow that far.
  (func $reserve (export "hooksieve_reserve") (param $length i32) (result i32)
    (local $start i32) (local $end i64) (local $pages i32)
    (local.set $start (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (local.set $end
      (i64.add (i64.extend_i32_u (local.get $start)) (i64.extend_i32_u (local.get $length))))
    ;; Pages that are missing, rounded up.
    (local.set $pages
      (i32.sub
        (i32.wrap_i64 (i64.shr_u (i64.add (local.get $end) (i64.const 65535)) (i64.const 16)))
        (memory.size)))
    (if (i32.gt_s (local.get $pages) (i32.const 0))
      (then
        (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1))
          (then (return (i32.const 0))))))
    (global.set $free (i32.wrap_i64 (local.get $end)))
    (local.get $start))

  ;; There is no `hooksieve_init`: this rule has no configuration.

  ;; Where the text of the string at `at` begins, and the offset after it. The texts read here are
  ;; at most 257 bytes long, so three of the four forms can occur. Anything else is no event: trap.
  (func $string (param $at i32) (result i32 i32)
    (local $tag i32) (local $text i32) (local $length i32)
    (local.set $tag (i32.load8_u (local.get $at)))
    (if (i32.eq (i32.and (local.get $tag) (i32.const 0xe0)) (i32.const 0xa0))
      (then ;; fixstr
        (local.set $text (i32.add (local.get $at) (i32.const 1)))
        (local.set $length (i32.and (local.get $tag) (i32.const 0x1f))))
      (else
        (if (i32.eq (local.get $tag) (i32.const 0xd9))
          (then ;; str 8
            (local.set $text (i32.add (local.get $at) (i32.const 2)))
            (local.set $length (i32.load8_u offset=1 (local.get $at))))
          (else
            (if (i32.ne (local.get $tag) (i32.const 0xda))
              (then (unreachable)))
            (local.set $text (i32.add (local.get $at) (i32.const 3))) ;; str 16, big-endian
            (local.set $length
              (i32.or
                (i32.shl (i32.load8_u offset=1 (local.get $at)) (i32.const 8))
                (i32.load8_u offset=2 (local.get $at))))))))
    (local.get $text)
    (i32.add (local.get $text) (local.get $length)))

  ;; The offset after the string at `at`.
  (func $after (param $at i32) (result i32)
    (local $end i32)
    (call $string (local.get $at))
    (local.set $end)
    (drop)
    (local.get $end))

  (func $answer (param $pointer i32) (param $length i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $pointer)) (i64.const 32))
      (i64.extend_i32_u (local.get $length))))

  ;; The skip index is not used: `type` stands at the beginning of every event.
  (func (export "hooksieve_decide")
    (param $event i32) (param $event_length i32) (param $index i32) (param $index_length i32)
    (result i64)
    (local $type i32) (local $text i32) (local $end i32) (local $answer i32)
    ;; The map's first byte, the key `id` (3 bytes) and its value, the key `source` (7) and its
    ;; value, the key `type` (5): the order is part of the contract.
    (local.set $type
      (i32.add
        (call $after
          (i32.add
            (call $after (i32.add (local.get $event) (i32.const 4)))
            (i32.const 7)))
        (i32.const 5)))
    (call $string (local.get $type))
    (local.set $end)
    (local.set $text)

    ;; "ping" is four bytes, so one comparison does.
    (if (i32.eq (i32.sub (local.get $end) (local.get $text)) (i32.const 4))
      (then
        (if (i32.eq (i32.load align=1 (local.get $text)) (i32.const 0x676e6970))
          (then
            (call $log (i32.const 0) (i32.const 96) (i32.const 17))
            (return (call $answer (i32.const 0) (i32.const 24)))))))

    ;; The beginning of the answer, and behind it the type as it stands in the event: a string is
    ;; MessagePack wherever it is.
    (local.set $answer (call $reserve (i32.const 512)))
    (if (i32.eqz (local.get $answer))
      (then (return (i64.const -3)))) ;; out of memory
    (memory.copy (local.get $answer) (i32.const 32) (i32.const 56))
    (memory.copy
      (i32.add (local.get $answer) (i32.const 56))
      (local.get $type)
      (i32.sub (local.get $end) (local.get $type)))
    (call $answer
      (local.get $answer)
      (i32.add (i32.const 56) (i32.sub (local.get $end) (local.get $type)))))
)
