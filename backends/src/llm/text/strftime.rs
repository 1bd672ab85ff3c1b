//! `strftime` of Python in the C locale and in UTC, for templates that say today's date. The time is given; there is no
//! clock here and no time zone.

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, taken apart.
struct Moment {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    day_of_year: i64,
    second_of_day: i64,
}

/// `format` for the moment `unix_seconds` after 1970 in UTC. Directives that are not known stay as they are.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> String {
    let moment = Moment::new(unix_seconds);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = rest.next();
        // `%-d` is the C library's: no padding.
        let bare = directive == Some('-');
        if bare {
            directive = rest.next();
        }
        match directive.and_then(|directive| moment.directive(directive)) {
            Some(text) if bare => out.push_str(match text.trim_start_matches(['0', ' ']) {
                "" => "0",
                text => text,
            }),
            Some(text) => out.push_str(&text),
            None => {
                out.push_str(if bare { "%-" } else { "%" });
                out.extend(directive);
            }
        }
    }
    out
}

impl Moment {
    fn new(unix_seconds: i64) -> Self {
        // Years 0 to 9999, as in Python; beyond, its last moments.
        let seconds = unix_seconds.clamp(-62_167_219_200, 253_402_300_799);
        let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Days since 0000-03-01 in cycles of 400 years (Howard Hinnant's civil_from_days).
        let shifted = days + 719_468;
        let (cycle, of_cycle) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_cycle = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
        let day = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
        let march_month = (5 * day + 2) / 153;
        let month = (march_month + 2) % 12;
        let year = cycle * 400 + year_of_cycle + i64::from(month < 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize];
        let day = day - (153 * march_month + 2) / 5 + 1;
        Moment {
            year,
            month: month as usize,
            day,
            weekday: (days + 4).rem_euclid(7) as usize,
            day_of_year: before + day + i64::from(leap && month > 1),
            second_of_day,
        }
    }

    fn directive(&self, directive: char) -> Option<String> {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (day_name, month_name) = (DAYS[self.weekday], MONTHS[self.month]);
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'D' => format!("{:02}/{:02}/{:02}", self.month + 1, self.day, self.year % 100),
            // A Python `datetime` without a time zone says nothing here.
            'z' | 'Z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}
